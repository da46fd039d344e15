//! Figures of several rounds as one.

/// A median and how far the rounds are apart, as a part of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Middle {
    pub(super) median: f64,
    pub(super) spread: f64,
}

impl Middle {
    /// Of no values there is none.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (first, last) = (*sorted.first()?, *sorted.last()?);
        let half = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[half]
        } else {
            f64::midpoint(sorted[half - 1], sorted[half])
        };
        let spread = if median > 0.0 {
            (last - first) / median
        } else {
            0.0
        };
        Some(Self { median, spread })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mean would let one disturbed round speak for all of them.
    #[test]
    fn medians() {
        assert_eq!(Middle::of(&[]), None);
        let odd = Middle::of(&[30.0, 10.0, 20.0]).unwrap();
        assert_eq!((odd.median, odd.spread), (20.0, 1.0));
        assert_eq!(Middle::of(&[1.0, 2.0]).unwrap().median, 1.5);
        assert_eq!(Middle::of(&[0.0]).unwrap().spread, 0.0);
    }
}
