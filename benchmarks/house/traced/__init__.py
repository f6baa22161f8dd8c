"""A folder for the path of traced processes; see `sitecustomize`."""
