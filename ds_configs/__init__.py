"""DeepSpeed configurations that come with the program."""
