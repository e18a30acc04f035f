"""What is known, what is engaged, and every change to it in order: one commit point, one log, a cursor per reader."""
