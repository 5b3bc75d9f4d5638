"""The published rows as data, one file a source."""
