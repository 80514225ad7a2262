"""How files and folders become rows, with the line of each."""
