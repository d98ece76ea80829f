//! Prompts that are not written on their own: both answers hold the whole conversation, and the prompt is what they share.

use crate::preference::Message;

/// Length in bytes of the prompt that two texts share.
///
/// The prompt is the longest common prefix, shortened so that it ends at the end of a word and before a single space;
/// the answers then begin with that space, as tokenizers expect. If an answer would be left blank (one text continues
/// the other), the prompt ends with the last whole line instead, and failing that is empty.
pub(crate) fn shared_prefix(chosen: &str, rejected: &str) -> usize {
    let common = chosen.bytes().zip(rejected.bytes()).take_while(|(a, b)| a == b).count();
    let common = (0..=common).rev().find(|&at| chosen.is_char_boundary(at) && rejected.is_char_boundary(at)).unwrap_or(0);
    let prefix = &chosen[..common];
    let is_word = |c: char| c.is_alphanumeric();
    let continues = |text: &str| text[common..].chars().next().is_some_and(is_word);
    let mut end = common;
    if continues(chosen) || continues(rejected) {
        end = prefix.trim_end_matches(is_word).len();
    }
    if prefix[..end].ends_with(' ') {
        end -= 1;
    }
    let leaves_answers = |end: usize| !chosen[end..].trim().is_empty() && !rejected[end..].trim().is_empty();
    if leaves_answers(end) {
        return end;
    }
    let line = prefix.trim_end().rfind('\n').map_or(0, |at| at + 1);
    if leaves_answers(line) { line } else { 0 }
}

/// Number of messages that two conversations share at their beginning; at least one message is left of each.
pub(crate) fn shared_messages(chosen: &[Message], rejected: &[Message]) -> usize {
    let most = chosen.len().min(rejected.len()).saturating_sub(1);
    chosen.iter().zip(rejected).take(most).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(chosen: &str, rejected: &str) -> (String, String, String) {
        let end = shared_prefix(chosen, rejected);
        (chosen[..end].to_string(), chosen[end..].to_string(), rejected[end..].to_string())
    }

    fn texts(prompt: &str, chosen: &str, rejected: &str) -> (String, String, String) {
        (prompt.to_string(), chosen.to_string(), rejected.to_string())
    }

    #[test]
    fn a_space_belongs_to_the_answer() {
        let found = split("The sky is blue.", "The sky is green.");
        assert_eq!(found, texts("The sky is", " blue.", " green."));
    }

    #[test]
    fn a_word_is_not_split() {
        let found = split("\n\nHuman: Hi\n\nAssistant: Hello there", "\n\nHuman: Hi\n\nAssistant: Help");
        assert_eq!(found, texts("\n\nHuman: Hi\n\nAssistant:", " Hello there", " Help"));
    }

    #[test]
    fn letters_of_several_bytes_stay_whole() {
        // Both letters begin with the byte 0xC3.
        assert_eq!(split("a: é", "a: ü"), texts("a:", " é", " ü"));
        assert_eq!(split("日本", "日光"), texts("", "日本", "日光"));
    }

    #[test]
    fn an_answer_that_continues_the_other_is_not_left_blank() {
        assert_eq!(split("Q: x\nA: yes", "Q: x\nA: yes sir"), texts("Q: x\n", "A: yes", "A: yes sir"));
        assert_eq!(split("yes", "yes sir"), texts("", "yes", "yes sir"));
    }

    #[test]
    fn one_message_is_left_of_each() {
        let message = |content: &str| Message { role: "user".into(), content: content.into() };
        let (a, b, c) = (message("a"), message("b"), message("c"));
        assert_eq!(shared_messages(&[a.clone(), b.clone()], &[a.clone(), c.clone()]), 1);
        assert_eq!(shared_messages(&[a.clone(), b.clone()], &[a.clone(), b.clone(), c]), 1);
        assert_eq!(shared_messages(&[b], &[a]), 0);
        assert_eq!(shared_messages(&[], &[]), 0);
    }
}
