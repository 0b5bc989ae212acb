"""Process groups, exchange by owner, gathered outputs, sharded embeddings: everything that talks to other workers."""
