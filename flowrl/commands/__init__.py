"""What a command of the command line does, apart from reading its arguments."""
