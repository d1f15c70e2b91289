"""A card that is not there: a discrete-event model of a serving engine, in virtual time and over real HTTP."""
