"""What two or more methods share: backbones, necks, heads, anchors, box coders, assigners, samplers, losses."""
