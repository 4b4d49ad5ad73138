"""One file a scheme; each reads like the equations it implements."""
