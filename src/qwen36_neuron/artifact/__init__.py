"""What is compiled for a device, checked before that, described beside it, audited before it is loaded."""
