"""Methods of unpaired translation: each a setting of a few chains."""
