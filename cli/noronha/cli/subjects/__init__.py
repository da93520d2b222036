"""One module for each subject of the command, imported when it is used."""
