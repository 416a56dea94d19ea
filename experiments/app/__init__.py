"""Parts of the programs that train, evaluate and serve one net."""
