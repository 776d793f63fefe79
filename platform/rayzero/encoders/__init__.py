"""Vision and text encoders behind one interface each: shipped inside wheels, from a hub id, or a local folder."""
