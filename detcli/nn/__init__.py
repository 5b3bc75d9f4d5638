"""What two or more methods share, from backbones to losses."""
