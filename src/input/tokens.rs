//! Texts as token ids.

/// Token ids of texts, padded to equal length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// Number of texts.
    pub batch: usize,
    /// Number of tokens of the longest text, to which all texts are padded.
    pub tokens: usize,
    /// Token ids, `[batch, tokens]`.
    pub input_ids: Vec<i64>,
    /// Mask with 1 for a token and 0 for padding, `[batch, tokens]`.
    pub attention_mask: Vec<i64>,
}

impl Encoding {
    /// Joins encodings into one batch, padded to the longest with token 0, which is masked.
    #[must_use]
    pub fn concatenate(encodings: &[&Self]) -> Self {
        let tokens = encodings.iter().map(|encoding| encoding.tokens).max().unwrap_or(0);
        let batch = encodings.iter().map(|encoding| encoding.batch).sum();
        let (mut input_ids, mut attention_mask) = (Vec::new(), Vec::new());
        for encoding in encodings {
            let padding = tokens - encoding.tokens;
            for row in 0..encoding.batch {
                let own = row * encoding.tokens..(row + 1) * encoding.tokens;
                input_ids.extend_from_slice(&encoding.input_ids[own.clone()]);
                input_ids.extend(std::iter::repeat_n(0, padding));
                attention_mask.extend_from_slice(&encoding.attention_mask[own]);
                attention_mask.extend(std::iter::repeat_n(0, padding));
            }
        }
        Self { batch, tokens, input_ids, attention_mask }
    }

    /// Joins rows of token ids into one batch, padded with `pad_id` to the longest.
    #[must_use]
    pub fn pad(rows: &[Vec<i64>], pad_id: i64) -> Self {
        let tokens = rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut input_ids = Vec::with_capacity(rows.len() * tokens);
        let mut attention_mask = Vec::with_capacity(rows.len() * tokens);
        for row in rows {
            let padding = tokens - row.len();
            input_ids.extend_from_slice(row);
            input_ids.extend(std::iter::repeat_n(pad_id, padding));
            attention_mask.extend(std::iter::repeat_n(1, row.len()));
            attention_mask.extend(std::iter::repeat_n(0, padding));
        }
        Self { batch: rows.len(), tokens, input_ids, attention_mask }
    }

    /// Joins encodings of single texts into one batch.
    #[must_use]
    pub fn stack<'a>(encodings: impl IntoIterator<Item = &'a Self>) -> Self {
        let rows: Vec<Vec<i64>> =
            encodings.into_iter().map(|encoding| encoding.input_ids.clone()).collect();
        Self::pad(&rows, 0)
    }

    /// Returns the texts `rows`, cut to the longest of them.
    ///
    /// # Panics
    ///
    /// Panics when `rows` is out of range.
    #[must_use]
    pub fn rows(&self, rows: std::ops::Range<usize>) -> Self {
        let kept = |row: usize| {
            let mask = &self.attention_mask[row * self.tokens..(row + 1) * self.tokens];
            mask.iter().rposition(|kept| *kept != 0).map_or(1, |last| last + 1)
        };
        let tokens = rows.clone().map(kept).max().unwrap_or(0).min(self.tokens);
        let take = |values: &[i64]| {
            let row = |row: usize| values[row * self.tokens..][..tokens].iter().copied();
            rows.clone().flat_map(row).collect::<Vec<i64>>()
        };
        Self {
            batch: rows.len(),
            tokens,
            input_ids: take(&self.input_ids),
            attention_mask: take(&self.attention_mask),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cut_to_their_longest() {
        let encoding = Encoding {
            batch: 3,
            tokens: 3,
            input_ids: vec![1, 2, 3, 4, 5, 0, 6, 0, 0],
            attention_mask: vec![1, 1, 1, 1, 1, 0, 1, 0, 0],
        };
        let rows = encoding.rows(1..3);
        assert_eq!((rows.batch, rows.tokens), (2, 2));
        assert_eq!(rows.input_ids, [4, 5, 6, 0]);
        assert_eq!(rows.attention_mask, [1, 1, 1, 0]);
    }
}
