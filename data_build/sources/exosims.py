"""The data files in the EXOSIMS wheel that two sources read: a table of planets and spectra of stars."""

from data_build.cache import WheelFiles

PLANETS = "EXOSIMS/PlanetPopulation/planets_2019.05.31_11.18.02.votable"
_STARS = "EXOSIMS/TargetList/muscles/"

FILES = WheelFiles(
    project="exosims",
    version="3.6.6",
    wheel_sha256="09238a29e7df461d2f65327bcf03f5521f0165992c43d97a6bfc79280637ad29",
    members={
        PLANETS: "3db8ada01e64aa9e6f728893ffeb8c7665ad9627c313dedf5b9c355b35cafde2",
        _STARS + "muscles_gj1132_3270_M4V.fits": "17f3cbfa9161b279c9cb1207542de6c0d5521ebd3deb8e37b08b50d6939f31d7",
        _STARS + "muscles_gj15a_3567_M1V.fits": "327b344a04dab608ceb5d70e0ef4beeda665950965cf3fe49954e9777541f24e",
        _STARS + "muscles_gj581_3295_M3V.fits": "6e4864f3b90a94903cb336812f3eb11c82a9894537071d350cfa370dd0d3fe22",
        _STARS + "muscles_gj676a_3734_M0V.fits": "844cea3ea15fa4dedb8f09053690dd864912c07711cfe34baa85ae700aa77fc6",
        _STARS + "muscles_hat-p-12_4653_K5V.fits": "d4c69f3eb141a70174472583f1ca0cd67bb0fc5711c61490f2ea85d9767bd2bd",
        _STARS + "muscles_hat-p-26_5062_K1V.fits": "ce4e30f19fed46ccad41fbb78b185ea62a41ed2d64d0533e368050c92786d04a",
        _STARS + "muscles_hd-149026_6084_G0IV.fits": "a29d413638178b6ec1f8f78582949aaaac5a78b59bf7559fd5274462cbcdd2c6",
        _STARS + "muscles_hd40307_4783_K3V.fits": "1c42727f4b71dbc26e215dc6d19e0fe2ae39822b4cda940e08ec4619e59ea36f",
        _STARS + "muscles_hd85512_4305_K6V.fits": "7f25ce667914df326ea7b463be7f856128edba4937af354df5d6e7c3073cd048",
        _STARS + "muscles_lhs-2686_3471_M5V.fits": "3db63d5ebd9c035cce7352ecf368c77687584df2e9f7e0c16b4a92c96feea2c7",
        _STARS + "muscles_lp-791-18_2949_M6V.fits": "f57aba997a60a8c4c3d0e2915e5ce58424d7473079720190e517d3295af02adb",
        _STARS + "muscles_toi-193_5443_G7V.fits": "dd92537c10e0a9b849d0bc8169d8b32dfecbe37626b354e1ccf421be808f4a14",
        _STARS + "muscles_trappist-1_2628_M8V.fits": "65804e4280761c05ee3e60a60baccd6d563a3ed7852b46ef5b6621845afabb99",
        _STARS + "muscles_v-eps-eri_5162_K2V.fits": "9315a489c4b987cb39e1315f83a4c8315f67e0c5e62b61ac6ae5aca645f9b0a9",
        _STARS + "muscles_wasp-127_5828_G5V.fits": "1158464b8f1aad56ccae8e8f14f2e2eb87f59d6cfc48326c42cb800fef5ab418",
        _STARS + "muscles_wasp-17_6548_F4V.fits": "4d81be5a5024cc905e0d546a804b6dd272a55e632ff1701142f67536a6f92463",
        _STARS + "muscles_wasp-43_4124_K7V.fits": "76c319ca9d4f73c4301bdf79912bca9a1b85e0f4979c223d98bfff387610becb",
        _STARS + "muscles_wasp-77a_5605_G8V.fits": "4ca498dba0aa629cff05e5a1720a20ab8fcb73e40e07b1b11f0965ac460a9786",
    },
)

#: The stars' spectra: muscles_<star>_<effective temperature in K>_<spectral type>.fits.
STARS = tuple(member for member in FILES.members if member.startswith(_STARS))
