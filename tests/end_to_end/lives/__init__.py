"""Projects that are suspended, deleted and created again in every order, beside operators that hold finalizers."""
