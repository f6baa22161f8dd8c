"""What runs the files, checks them and serves them. Of `export` it imports only `export.bundle` and `export.errors`."""
