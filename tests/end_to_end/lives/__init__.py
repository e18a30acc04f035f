"""Projects that are suspended, deleted and created again in many orders, beside operators that hold finalizers."""
