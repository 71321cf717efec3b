"""What every table and figure is made with; knows none of them by name but through the registry."""
