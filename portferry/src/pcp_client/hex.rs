//! Octets as text: hexadecimal digits, in groups of four octets as the figures of RFC 6887 are drawn.

use std::fmt::Write;

/// `0201000000000e10`
pub(super) fn plain(octets: &[u8]) -> String {
    octets.iter().fold(String::new(), |mut text, octet| {
        let _ = write!(text, "{octet:02x}");
        text
    })
}

/// `02010000 00000e10 …`, eight groups of four octets a line.
pub(super) fn lines(octets: &[u8]) -> Vec<String> {
    let line = |octets: &[u8]| octets.chunks(4).map(plain).collect::<Vec<_>>().join(" ");
    octets.chunks(32).map(line).collect()
}

/// The octets of an even number of digits; blanks between them do not count.
pub(super) fn parse(text: &str) -> Result<Vec<u8>, String> {
    let digit = |c: char| {
        let value = c.to_digit(16).and_then(|value| u8::try_from(value).ok());
        value.ok_or_else(|| format!("`{c}` is no hexadecimal digit"))
    };
    let digits: Vec<u8> = text.chars().filter(|c| !c.is_whitespace()).map(digit).collect::<Result<_, _>>()?;
    if !digits.len().is_multiple_of(2) {
        return Err(format!("{} hexadecimal digits are no whole octets", digits.len()));
    }
    Ok(digits.chunks(2).map(|pair| pair.iter().fold(0, |octet, digit| octet << 4 | digit)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_four_octets_and_back() {
        let octets: Vec<u8> = (0..38).collect();
        let lines = lines(&octets);
        assert_eq!(
            lines,
            ["00010203 04050607 08090a0b 0c0d0e0f 10111213 14151617 18191a1b 1c1d1e1f", "20212223 2425"]
        );
        assert_eq!(parse(&lines.join("\n")), Ok(octets));
        assert_eq!(parse("Ff 0"), Err("3 hexadecimal digits are no whole octets".into()));
        assert_eq!(parse("0x"), Err("`x` is no hexadecimal digit".into()));
        assert_eq!(parse(""), Ok(vec![]));
    }
}
