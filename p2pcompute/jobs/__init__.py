"""Pure: the life of a job, one file a verb. Events in, effects out; touches no clock, socket or disk."""
