"""Parts of other programs: what their own plug-in interfaces ask for."""
