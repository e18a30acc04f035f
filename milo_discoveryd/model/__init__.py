"""The values that everybody speaks: frozen, without behaviour beyond reading themselves, and without I/O."""
