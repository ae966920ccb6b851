"""What can be deployed: each module holds one flow."""
