"""Azure: the roles of a worker, what sets them up, and the publishing of the OS image."""
