"""Everything that can go wrong, at random and for as long as one likes: `make soak`."""
