"""Who may see and have what: the rules, and what follows from them for one caller. Pure."""
