"""From an image file to ranked classes: decoded by the bundle's recipe, run here or by a server."""
