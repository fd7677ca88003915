//! Lines and columns of bytes.

/// Finds the lines and columns of bytes that come in order, so that no line is counted twice.
pub(super) struct Positions<'a> {
    text: &'a [u8],
    at: usize,
    line: usize,
    column: usize,
}

impl<'a> Positions<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Positions { text, at: 0, line: 1, column: 1 }
    }

    /// Returns the line and the column in characters, both from 1. `at` must not be before the
    /// byte that was asked for last.
    pub(super) fn of(&mut self, at: usize) -> (usize, usize) {
        let at = at.clamp(self.at, self.text.len());
        let between = &self.text[self.at..at];
        self.at = at;
        self.line += between.iter().filter(|&&byte| byte == b'\n').count();
        let mut of_line = between;
        if let Some(newline) = between.iter().rposition(|&byte| byte == b'\n') {
            of_line = &between[newline + 1..];
            self.column = 1;
        }
        self.column += String::from_utf8_lossy(of_line).chars().count();
        (self.line, self.column)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_counted_in_characters() {
        let mut positions = Positions::new("a\nüü😀x\ny".as_bytes());
        assert_eq!([2, 4, 10, 12].map(|at| positions.of(at)), [(2, 1), (2, 2), (2, 4), (3, 1)]);
        assert_eq!(Positions::new(b"").of(0), (1, 1));
    }
}
