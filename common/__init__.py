"""What every other folder may use and what itself uses none of them: errors and files."""
