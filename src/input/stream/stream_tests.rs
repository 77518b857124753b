//! Tests of the text of an answer.

use proptest::prelude::*;

use super::*;

/// Returns all of an answer made of `tokens`, and the stop string that ended it.
fn answer(stops: &[&str], tokens: &[&[u8]]) -> (String, Option<usize>) {
    let mut answer = AnswerText::new(&StopStrings::new(stops).expect("valid"));
    let (mut text, mut stop) = (String::new(), None);
    for token in tokens {
        let added = answer.push(token);
        text.push_str(&added.text);
        stop = stop.or(added.stop);
    }
    text.push_str(&answer.finish());
    (text, stop)
}

#[test]
fn a_character_is_never_split() {
    let mut answer = AnswerText::new(&StopStrings::default());
    let parts: Vec<String> = "a😀é".bytes().map(|byte| answer.push(&[byte]).text).collect();
    assert_eq!(parts, ["a", "", "", "", "😀", "", "é"]);
    assert_eq!(answer.finish(), "");
}

#[test]
fn bytes_that_are_no_characters_are_replaced() {
    assert_eq!(
        answer(&[], &[b"a\xFF", b"\xC3", b"(", b"\xE2\x82"]).0,
        "a\u{FFFD}\u{FFFD}(\u{FFFD}"
    );
}

#[test]
fn a_stop_string_is_found_across_tokens() {
    assert_eq!(answer(&["\n\n"], &[b"a\n", b"\nb"]), ("a".into(), Some(0)));
    assert_eq!(answer(&["END"], &[b"xE", b"E", b"N", b"Dy"]), ("xE".into(), Some(0)));
    assert_eq!(answer(&["aab"], &[b"aa", b"a", b"b"]), ("a".into(), Some(0)));
    // Of two that end together, the longer one is cut off.
    assert_eq!(answer(&["b", "ab"], &[b"xab"]), ("x".into(), Some(1)));
    // The one that ends first counts.
    assert_eq!(answer(&["abcd", "bc"], &[b"xabcd"]), ("xa".into(), Some(1)));
    assert_eq!(answer(&["é"], &[b"x\xC3", b"\xA9y"]), ("x".into(), Some(0)));
}

#[test]
fn text_that_may_begin_a_stop_string_is_held_back() {
    let mut answer = AnswerText::new(&StopStrings::new(&["stop"]).expect("valid"));
    assert_eq!(answer.push(b"don't st").text, "don't ");
    assert_eq!(answer.push(b"and").text, "stand");
    assert_eq!(answer.push(b" st").text, " ");
    assert_eq!(answer.finish(), "st");
    assert_eq!(answer.push(b"x"), Added::default());
}

#[test]
fn nothing_is_added_after_a_stop_string() {
    let mut answer = AnswerText::new(&StopStrings::new(&["."]).expect("valid"));
    assert_eq!(answer.push(b"a.b"), Added { text: "a".into(), stop: Some(0) });
    assert_eq!(answer.push(b"c"), Added::default());
    assert_eq!(answer.finish(), "");
}

#[test]
fn stop_strings_have_bounds() {
    assert_eq!(StopStrings::new(&["a", ""]).unwrap_err(), StopError::Empty { index: 1 });
    let long = "x".repeat(1025);
    let error = StopStrings::new(&[&long]).unwrap_err();
    assert_eq!(error.to_string(), "stop string 0 has 1025 bytes; valid are 1 to 1024");
    assert_eq!(StopStrings::new(&["a"; 17]).unwrap_err(), StopError::Many { found: 17 });
}

/// Returns `text` up to the first end of a stop string, by trying every place.
fn naive(stops: &[String], text: &str) -> (String, Option<usize>) {
    for end in 1..=text.len() {
        let ending = |stop: &&String| text.as_bytes()[..end].ends_with(stop.as_bytes());
        if let Some(stop) = stops.iter().filter(ending).max_by_key(|stop| stop.len()) {
            let index = stops.iter().position(|other| other == stop);
            let start = &text.as_bytes()[..end - stop.len()];
            return (String::from_utf8_lossy(start).into_owned(), index);
        }
    }
    (text.to_owned(), None)
}

proptest! {
    #[test]
    fn any_tokens_give_what_a_search_of_the_whole_text_gives(
        text in "[ab é]{0,40}",
        stops in prop::collection::vec("[ab é]{1,5}", 0..4),
        cuts in prop::collection::vec(0_usize..80, 0..20),
    ) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let tokens: Vec<&[u8]> =
            cuts.windows(2).map(|ends| &text.as_bytes()[ends[0]..ends[1]]).collect();
        let names: Vec<&str> = stops.iter().map(String::as_str).collect();
        prop_assert_eq!(answer(&names, &tokens), naive(&stops, &text));
    }
}
