//! Messages of panics.

use std::any::Any;

/// Returns the message of a panic if it is a literal. One that was put together may hold a part of
/// a request: the standard library's own ones quote the text whose slice is out of range.
pub fn panic_literal(payload: &(dyn Any + Send)) -> &str {
    payload.downcast_ref::<&str>().copied().unwrap_or("its message is withheld")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_withheld_if_it_was_put_together() {
        assert_eq!(panic_literal(&"a broken promise"), "a broken promise");
        assert_eq!(panic_literal(&"a text".to_owned()), "its message is withheld");
        assert_eq!(panic_literal(&7), "its message is withheld");
    }
}
