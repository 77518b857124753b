//! Special tokens in texts: where they stand, and where they are only text.

use aho_corasick::{AhoCorasick, MatchKind};

/// Special token of a vocabulary.
#[derive(Debug, Clone)]
pub(super) struct SpecialToken {
    /// Id of the token.
    pub(super) id: u32,
    /// Text that stands for it.
    pub(super) text: String,
    /// Whether it takes the white space before it.
    pub(super) strips_left: bool,
    /// Whether it takes the white space after it.
    pub(super) strips_right: bool,
}

/// Finder of special tokens.
#[derive(Debug)]
pub(super) struct SpecialTokens {
    tokens: Vec<SpecialToken>,
    /// Ids of `tokens`, in rising order.
    ids: Vec<u32>,
    /// Automaton over the texts of `tokens`; None if there are none.
    finder: Option<AhoCorasick>,
}

/// Part of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fragment<'t> {
    /// Text without special tokens.
    Text(&'t str),
    /// Special token, by id.
    Special(u32),
}

impl SpecialTokens {
    /// Creates the finder of `tokens`; those without text are left out.
    ///
    /// # Errors
    ///
    /// Fails when the automaton would be too large.
    pub(super) fn new(mut tokens: Vec<SpecialToken>) -> Result<Self, aho_corasick::BuildError> {
        tokens.retain(|token| !token.text.is_empty());
        let texts = tokens.iter().map(|token| &token.text);
        let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts)?;
        let finder = (!tokens.is_empty()).then_some(finder);
        let mut ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
        ids.sort_unstable();
        Ok(Self { tokens, ids, finder })
    }

    /// Returns the texts of the special tokens.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        self.tokens.iter().map(|token| token.text.as_str())
    }

    /// Returns whether the token `id` is special.
    pub(super) fn contains(&self, id: u32) -> bool {
        self.ids.binary_search(&id).is_ok()
    }

    /// Splits `text` at special tokens; none leads over one of the byte offsets `guards`.
    pub(super) fn split<'t>(&self, text: &'t str, guards: &[usize]) -> Vec<Fragment<'t>> {
        let mut fragments = Vec::new();
        let (mut done, mut start) = (0, 0);
        let Some(finder) = &self.finder else { return vec![Fragment::Text(text)] };
        for end in guards.iter().copied().chain([text.len()]) {
            for found in finder.find_iter(&text[start..end]) {
                let token = &self.tokens[found.pattern().as_usize()];
                let (from, to) = (start + found.start(), start + found.end());
                if from < done {
                    continue;
                }
                let mut before = &text[done..from];
                if token.strips_left {
                    before = before.trim_end();
                }
                if !before.is_empty() {
                    fragments.push(Fragment::Text(before));
                }
                fragments.push(Fragment::Special(token.id));
                let after = &text[to..];
                let stripped = after.len() - after.trim_start().len();
                done = if token.strips_right { to + stripped } else { to };
            }
            start = end;
        }
        if done < text.len() {
            fragments.push(Fragment::Text(&text[done..]));
        }
        fragments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> SpecialTokens {
        let token = |id, text: &str, strips: bool| SpecialToken {
            id,
            text: text.into(),
            strips_left: strips,
            strips_right: strips,
        };
        let tokens = vec![token(1, "<s>", false), token(2, "<s>x", false), token(3, "<e>", true)];
        SpecialTokens::new(tokens).expect("small")
    }

    #[test]
    fn the_longest_special_token_is_found() {
        let fragments = tokens().split("a<s><s>xb", &[]);
        let expected =
            [Fragment::Text("a"), Fragment::Special(1), Fragment::Special(2), Fragment::Text("b")];
        assert_eq!(fragments, expected);
    }

    #[test]
    fn a_guard_keeps_a_special_token_text() {
        let fragments = tokens().split("<s>a<s>b<s>", &[5]);
        let expected = [Fragment::Special(1), Fragment::Text("a<s>b"), Fragment::Special(1)];
        assert_eq!(fragments, expected);
        assert_eq!(tokens().split("<s>x", &[3]), [Fragment::Special(1), Fragment::Text("x")]);
        assert_eq!(tokens().split("<s>", &[1]), [Fragment::Text("<s>")]);
    }

    #[test]
    fn a_special_token_takes_the_space_that_it_strips() {
        let fragments = tokens().split("a \n<e>  b<s> c", &[]);
        let expected = [
            Fragment::Text("a"),
            Fragment::Special(3),
            Fragment::Text("b"),
            Fragment::Special(1),
            Fragment::Text(" c"),
        ];
        assert_eq!(fragments, expected);
    }
}
