"""What keeps an installation in order: looking it over, clearing away what is left behind, backup and restore."""
