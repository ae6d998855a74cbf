//! Which parts of answers count as claims, and which of them a text supports.

use super::*;

const FILE: &str = "The Hartwell mill, run by Mara Ann Velt since 3 May 1998, stands in Dunmore.\n\
    It ground 1,234 tonnes for $5,600 and keeps 12 per cent. Run src/main.rs with `--dry-run`, version 1.95.0.\n\
    The lock takes the code AB-1234; write to mara@velt.example or see https://velt.example/mill#top.\n\
    Set probe.age to 76 MB at 14:30, _retry_frame_quota_ to 84. The Bank of Dunmore lends it. // Anders\n// Holm wrote this.\n\
    三百二十人住在「山水镇」，二〇二六年，张伟。 Unicode Consortium's files are read by parsers. Offset -40.\n";

/// The unsupported parts of an answer about the file, joined.
fn unsupported(answer: &str) -> String {
    let documents = [Document::plain("docs/mill.txt", FILE)];
    let evidence = FileEvidence::new(&documents);
    let checker = ClaimChecker::new(&evidence, &["Did Cole Brandt pay 99 pounds?".to_owned()]);
    let parts = checker.unsupported(answer, false).into_iter().map(|claim| answer[claim.span].to_owned());
    parts.collect::<Vec<_>>().join(" | ")
}

#[track_caller]
fn check(answer: &str, expected: &str) {
    assert_eq!(unsupported(answer), expected, "{answer}");
}

#[test]
fn what_the_files_or_questions_have_is_supported() {
    for answer in [
        "Mara Velt runs the Hartwell Mill in Dunmore.",
        "Mara Ann Velt's mill",
        "Since May 1998; since 1998-05-03; on May 3.",
        "It ground 1234 tonnes, or 1.234 t, and keeps 12 %.",
        "It cost 5600 dollars; the question names Cole Brandt and 99.",
        "Version v1.95.0, that is 1.95.",
        "The code is AB-1234.",
        "Write to mara@velt.example.",
        "See https://velt.example/mill#top, docs/mill.txt and src/main.rs.",
        "`probe.age` is 76MB at 2:30 pm, retry_frame_quota 84; use `--dry-run`.",
        "The Bank of Dunmore lends it, as Anders Holm wrote.",
        "320人，2026年。",
        "他住在「山水镇」。",
        "The Unicode Consortium's parser",
        "Mr. Velt and Mrs Velt",
        "Dr. Velt said \"It ground 1,234 tonnes\".",
        "The offset is −40, or 40.",
        "1. The mill\n",
        "",
    ] {
        check(answer, "");
    }
}

#[test]
fn what_no_file_has_is_unsupported() {
    check("Mara Smith runs it.", "Mara Smith");
    check("It is run by Velt Mara.", "Velt Mara");
    check("Since 4 May 1998.", "4 May 1998");
    check("It ground 1,235 tonnes.", "1,235");
    check("It ground 1,234 kg.", "1,234 kg");
    check("It keeps 76 GB, not 5 per cent.", "76 GB | 5 per cent");
    check("Together that is 6,834.", "6,834");
    check("The code is AB-1235 or ab_1234.", "AB-1235 | ab_1234");
    check("Set frame_quota to 84, not retry_frame.", "frame_quota | retry_frame");
    check("Version 1.95.1 of probe.ages", "1.95.1 | probe.ages");
    check("See src/main.c and www.velt.example.", "src/main.c | www.velt.example");
    check("Write to mara@velt.org.", "mara@velt.org");
    check("The Bank of Hartwell lends it.", "Bank of Hartwell");
    check("三百二十一人，2027年。", "三百二十一 | 2027");
    check("他住在「水山镇」。", "水山镇");
    check("It says \"ground 1,234 tons daily\".", "ground 1,234 tons daily");
    check("Twelve mills, thirteen locks.", "thirteen");
    check("`--wet-run`", "--wet-run");
    check("Call 555-0199.", "555-0199");
    check("the IBM mill near Cologne", "IBM | Cologne");
    check("At 14:31.", "14:31");
    check("12 million", "12 million");
}

#[test]
fn capitals_at_the_start_of_sentences_are_no_names() {
    for answer in [
        "Unfortunately, the text does not say. However, it might.",
        "Running it reads files: Parsing takes long.",
        "- Additionally, I know.",
        "## Key points",
        "Don't. It's fine. I'm sure.",
        "Consequently the mill is large.",
    ] {
        check(answer, "");
    }
    check("Marguerite runs it. Beverly too; Inverness.", "Marguerite | Beverly | Inverness");
    check("In Cologne it stands.", "Cologne");
}
