"""What the store is asked for: runs by name, their table, audits."""
