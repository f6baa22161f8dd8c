"""A folder for the import path of traced processes; see `sitecustomize`."""
