"""The notebooks, executed, merged and exported."""
