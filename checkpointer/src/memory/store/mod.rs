//! What the backup has of a guest: memory and device state of whole epochs, in shared memory.
