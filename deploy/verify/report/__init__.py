"""report.html: the verdict in words, tables and pictures."""
