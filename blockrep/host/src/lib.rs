//! What every blockrep daemon needs of its host.
