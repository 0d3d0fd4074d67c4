"""What families are made with, and the table of those that are one call. No file of this folder is a family."""
