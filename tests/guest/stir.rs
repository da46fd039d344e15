//! Memory that changes all the time, each page known: epochs are not empty, and a page that was left out of one
//! is found when its turn comes again.

use super::receipts::mix;

const WORDS: usize = 512;

/// One page of memory.
#[repr(align(4096))]
#[derive(Clone)]
struct Page([u64; WORDS]);

pub(crate) struct Stir {
    pages: Vec<Page>,
    /// Pages rewritten so far.
    turn: u64,
}

impl Stir {
    /// 2 to the power of `exponent` pages, none of which has had its turn.
    pub(crate) fn new(exponent: u32) -> Self {
        Self {
            pages: vec![Page([0; WORDS]); 1 << exponent],
            turn: 0,
        }
    }

    /// An odd factor takes every page once before it takes one again.
    fn place(&self, turn: u64) -> usize {
        (turn.wrapping_mul(0x9e37_79b1) % self.pages.len() as u64) as usize
    }

    /// Checks the page whose turn it is, and writes it anew.
    pub(crate) fn step(&mut self) -> Result<(), String> {
        let place = self.place(self.turn);
        let before = self.turn.checked_sub(self.pages.len() as u64);
        // Now and then a word of each 512 bytes; all of them at the end.
        check(&self.pages[place], place, before, WORDS / 8)?;
        for (at, word) in self.pages[place].0.iter_mut().enumerate() {
            *word = content(self.turn, at);
        }
        self.turn += 1;
        Ok(())
    }

    /// Checks every page.
    pub(crate) fn check_all(&self) -> Result<(), String> {
        let count = self.pages.len() as u64;
        let oldest = self.turn.saturating_sub(count);
        for turn in oldest..self.turn {
            let place = self.place(turn);
            check(&self.pages[place], place, Some(turn), 1)?;
        }
        Ok(())
    }
}

/// What turn `turn` writes into word `at`; a page that had no turn is zero.
fn content(turn: u64, at: usize) -> u64 {
    mix(turn).wrapping_add(at as u64)
}

fn check(page: &Page, place: usize, turn: Option<u64>, step: usize) -> Result<(), String> {
    for (at, word) in page.0.iter().enumerate().step_by(step) {
        let expected = turn.map_or(0, |turn| content(turn, at));
        if *word != expected {
            return Err(format!(
                "word {at} of page {place} is not of its last turn, {}",
                turn.map_or("none".to_owned(), |turn| turn.to_string())
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    //! Pages that nobody checks prove nothing about the memory that came back.

    use super::*;

    #[test]
    fn a_page_that_was_left_out_is_found_at_its_next_turn() {
        let mut stir = Stir::new(4);
        for _ in 0..40 {
            stir.step().unwrap();
        }
        assert_eq!(stir.check_all(), Ok(()));
        // As it would come back from a copy that missed its last change.
        let (place, word) = (stir.place(41), 64);
        stir.pages[place].0[word] = content(9, word);
        assert!(stir.check_all().is_err());
        stir.step().unwrap();
        assert!(stir.step().is_err(), "turn 41 is the page's");
    }
}
