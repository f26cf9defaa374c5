"""What predictions rest on, whether that can be trusted, and the report that shows it."""
