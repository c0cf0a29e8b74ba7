"""Pure: who is in the network and what is believed about them. Events in, effects out."""
