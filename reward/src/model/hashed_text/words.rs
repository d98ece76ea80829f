//! Splits a text into lower-cased words and marks, and hashes them.
//!
//! A word is a run of letters and digits of any script, with combining marks and inner apostrophes. A Chinese or Japanese
//! character is a word of its own, since these scripts have no spaces. Every other visible character (punctuation,
//! symbols, emoji) is a token of its own as well, because what annotators fall for is often in the marks.

/// FNV-1a, 64 bits, over code points instead of bytes: fixed across builds and machines, unlike the standard hasher.
pub(super) const HASH_START: u64 = 0xcbf2_9ce4_8422_2325;

/// Adds a character or another hash to a running hash.
#[inline]
pub(super) fn extend(hash: u64, next: u64) -> u64 {
    (hash ^ next).wrapping_mul(0x0000_0100_0000_01b3)
}

/// The finaliser of SplitMix64: every output bit depends on every input bit.
#[inline]
pub(super) fn finish(hash: u64) -> u64 {
    let mut z = hash;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A token of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token {
    /// Hash of its characters.
    pub hash: u64,
    /// Its characters in the buffer.
    pub start: u32,
    /// One past its last character.
    pub end: u32,
    /// False for marks, which have no inner n-grams.
    pub is_word: bool,
}

/// Appends the tokens of `text` to `tokens` and their lower-cased characters to `characters`.
pub(super) fn tokenize(text: &str, characters: &mut Vec<char>, tokens: &mut Vec<Token>) {
    let mut start = characters.len();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let is_apostrophe = matches!(c, '\'' | '\u{2019}');
        let is_inside = characters.len() > start;
        if (is_part_of_word(c) && !stands_alone(c)) || (is_inside && is_combining(c)) {
            push_lower(c, characters);
        } else if is_apostrophe && is_inside && rest.peek().is_some_and(|&next| next.is_alphanumeric()) {
            characters.push('\'');
        } else {
            end_token(&mut start, characters, tokens, true);
            if !c.is_whitespace() && !c.is_control() && !is_combining(c) {
                push_lower(c, characters);
                end_token(&mut start, characters, tokens, false);
            }
        }
    }
    end_token(&mut start, characters, tokens, true);
}

fn end_token(start: &mut usize, characters: &[char], tokens: &mut Vec<Token>, is_word: bool) {
    if characters.len() > *start {
        let hash = characters[*start..].iter().fold(HASH_START, |hash, &c| extend(hash, u64::from(c)));
        tokens.push(Token { hash, start: *start as u32, end: characters.len() as u32, is_word });
        *start = characters.len();
    }
}

#[inline]
fn push_lower(c: char, characters: &mut Vec<char>) {
    if c.is_ascii() {
        characters.push(c.to_ascii_lowercase());
    } else {
        characters.extend(c.to_lowercase());
    }
}

#[inline]
fn is_part_of_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Accents that are characters of their own, joiners and variation selectors: they never begin a token.
#[inline]
fn is_combining(c: char) -> bool {
    matches!(u32::from(c), 0x0300..=0x036F | 0x1AB0..=0x1AFF | 0x1DC0..=0x1DFF | 0x200C..=0x200D | 0x20D0..=0x20FF | 0xFE00..=0xFE0F)
}

/// Characters of scripts that are written without spaces between words.
#[inline]
fn stands_alone(c: char) -> bool {
    matches!(u32::from(c), 0x3040..=0x30FF | 0x3400..=0x4DBF | 0x4E00..=0x9FFF | 0xF900..=0xFAFF | 0x20000..=0x323AF)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<String> {
        let (mut characters, mut tokens) = (Vec::new(), Vec::new());
        tokenize(text, &mut characters, &mut tokens);
        tokens.iter().map(|t| characters[t.start as usize..t.end as usize].iter().collect()).collect()
    }

    #[test]
    fn words_and_marks_are_told_apart() {
        assert_eq!(split("Don't STOP, it\u{2019}s 3rd!!"), ["don't", "stop", ",", "it's", "3rd", "!", "!"]);
        assert_eq!(split("'quoted' words'"), ["'", "quoted", "'", "words", "'"]);
        assert_eq!(split("  \n\t "), Vec::<String>::new());
    }

    #[test]
    fn other_scripts_are_words() {
        assert_eq!(split("Über Straße ПРИВЕТ"), ["über", "straße", "привет"]);
        assert_eq!(split("你好 abc"), ["你", "好", "abc"]);
        assert_eq!(split("e\u{301}tude"), ["e\u{301}tude"]);
        assert_eq!(split("ok 👍🏽"), ["ok", "👍", "🏽"]);
    }

    #[test]
    fn the_hash_is_fixed() {
        let (mut characters, mut tokens) = (Vec::new(), Vec::new());
        tokenize("a foobar", &mut characters, &mut tokens);
        // FNV-1a of "a" and "foobar" as published by its authors; code points equal bytes in ASCII.
        assert_eq!(tokens[0].hash, 0xaf63_dc4c_8601_ec8c);
        assert_eq!(tokens[1].hash, 0x8594_4171_f739_67e8);
    }
}
