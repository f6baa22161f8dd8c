"""What serving costs, and whether its bits hold: servers in processes of their own, on loopback."""
