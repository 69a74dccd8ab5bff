//! Wildcards: `*` for any run of characters, `?` for one.

/// True if `pattern` fits the whole of `text`.
pub(super) fn fits(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where to go on if the last `*` has to take one more character.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                retry = Some((p + 1, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match retry {
                Some((after, taken)) => {
                    retry = Some((after, taken + 1));
                    (p, t) = (after, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// As [`fits`], without regard to case.
pub(super) fn fits_any_case(pattern: &str, text: &str) -> bool {
    fits(&pattern.to_lowercase(), &text.to_lowercase())
}

/// As [`fits`], part by part of an ARN, so that no wildcard reaches over a colon of its first five parts.
pub(super) fn fits_arn(pattern: &str, arn: &str) -> bool {
    let (patterns, parts): (Vec<_>, Vec<_>) =
        (pattern.splitn(6, ':').collect(), arn.splitn(6, ':').collect());
    if patterns.len() < 6 {
        return fits(pattern, arn);
    }
    patterns.len() == parts.len() && patterns.iter().zip(parts).all(|(pattern, part)| fits(pattern, part))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the wildcards mean, as slowly as can be.
    fn by_definition(pattern: &[char], text: &[char]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some(('*', rest)) => (0..=text.len()).any(|taken| by_definition(rest, &text[taken..])),
            Some((c, rest)) => text
                .split_first()
                .is_some_and(|(first, text)| (*c == '?' || c == first) && by_definition(rest, text)),
        }
    }

    proptest! {
        #[test]
        fn wildcards_fit_what_they_mean(pattern in "[ab*?]{0,6}", text in "[ab]{0,6}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(fits(&pattern, &text), by_definition(&chars(&pattern), &chars(&text)));
        }
    }

    #[test]
    fn arns_are_held_part_by_part() {
        assert!(fits_arn("arn:aws:kms:*:111122223333:key/*", "arn:aws:kms:us-east-1:111122223333:key/a:b"));
        assert!(!fits_arn("arn:aws:*:111122223333:x:key/*", "arn:aws:kms:us-east-1:111122223333:key/a"));
        assert!(!fits_arn("arn:aws:kms:*:*:*", "kms"));
        assert!(fits_any_case("KMS:decr*", "kms:Decrypt") && !fits("KMS:decr*", "kms:Decrypt"));
    }
}
