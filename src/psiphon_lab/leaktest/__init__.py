"""Every known leak, tried in every state, with the frames as evidence."""
