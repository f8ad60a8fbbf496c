"""Data sets that are the rows of a table: columns, their division into parts, encodings."""
